"""What `bad_link.py` is made of: namespaces joined by a link that loses, delays and queues."""
