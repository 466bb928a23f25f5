"""What happened when: kept in rings, shown as a Chrome trace."""
