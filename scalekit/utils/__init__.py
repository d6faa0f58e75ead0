"""Small tools that know nothing of training: files, folders, the log, YAML."""
