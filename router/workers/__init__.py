"""The workers as the router sees them: who there is, how they are talked to, when they are left alone."""
