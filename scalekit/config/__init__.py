"""The settings of a job: what each may be, its checks, and the files that they are read from."""
