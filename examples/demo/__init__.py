"""From a registration to a verified bill, with every step printed: `make demo`, `make demo CHAOS=1`."""
