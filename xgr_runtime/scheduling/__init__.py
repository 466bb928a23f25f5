"""What launches cost, and who waits for what they need: plain numbers."""
