"""A process from the inside: its life, its watchdog, its log."""
