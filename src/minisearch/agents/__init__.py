"""Search agents: how a model and a search engine talk, who shows it, and what comes of it."""
