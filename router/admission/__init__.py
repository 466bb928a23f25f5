"""Who is let in, and which pair serves: forecasts, backlogs, margins."""
