"""Text -> tokens -> batches: from what a user names or brings."""

from initlab.corpus.loading import load_corpus
from initlab.corpus.tokenizing import byte_encoding
from initlab.corpus.tokens import STATISTICS_TOKENS, Corpus

__all__ = ["STATISTICS_TOKENS", "Corpus", "byte_encoding", "load_corpus"]
