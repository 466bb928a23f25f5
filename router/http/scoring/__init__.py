"""POST /score: exact scores of the items that a request names, instead of a search for the best ones."""
