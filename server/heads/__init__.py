"""What stands behind a backbone: dense modules and projections, sparse weights, token vectors, a reranker's score."""
