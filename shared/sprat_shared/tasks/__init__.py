"""Tasks of a site: what is asked of several models together, as typed graphs. Pure; loads no numpy."""
