"""What runs in the environment of a vLLM server, which has no Plaudit: its folder goes on that server's path."""
