"""Programs that run on the device, standard library only: sent as source over the admin's login."""
