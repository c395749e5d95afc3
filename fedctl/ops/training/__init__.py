"""How a round is carried out: its run, its driver, one site a device, and what is exchanged with it."""
