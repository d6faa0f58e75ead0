"""Lightning callbacks: what happens beside the training, each by itself."""
