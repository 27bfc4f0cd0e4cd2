"""Messages between device and server, version 1 (`/device/v1`): dataclasses that read strictly, write canonically."""
