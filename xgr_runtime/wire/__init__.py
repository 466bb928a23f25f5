"""What processes and clients say to each other: typed messages and answers."""
