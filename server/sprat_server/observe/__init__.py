"""What the server says of itself: logs, metrics, and who acts."""
