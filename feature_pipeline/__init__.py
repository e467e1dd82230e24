"""Trading features that are correct at every past moment, as a Dagster asset graph."""
