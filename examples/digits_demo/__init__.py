"""The demo's model and data: handwritten digits, and the same digits seen by a camera that was knocked."""
