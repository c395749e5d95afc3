"""How the workstation reaches an agent: Unix sockets and SSH, one client over both."""
