"""One package for each family of clients: routes, the shape of requests, and nothing else."""
