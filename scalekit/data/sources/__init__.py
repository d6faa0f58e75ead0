"""Where rows come from: files, hubs, Python objects, and mixtures of them."""
