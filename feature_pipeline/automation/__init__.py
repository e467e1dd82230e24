"""What happens by itself: sensors, schedules, freshness. No computation and no SQL of its own."""
