"""From a registration to a verified bill, told as it happens: `make demo`, `make demo CHAOS=1`."""
