"""How the processes of a job are started, watched over, and started again."""
