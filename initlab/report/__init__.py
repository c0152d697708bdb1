"""Tables and findings as pictures, pages and terminal text. Torch-free."""
