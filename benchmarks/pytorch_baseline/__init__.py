"""SR-GNN and GCE-GNN in PyTorch, twice: at the cost of the released code, and as fast as we could make them."""
