"""What a number means: rules with a limit, the limit's basis, and the line to change."""
