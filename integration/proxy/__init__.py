"""Shows every promise of the proxy on real nodes, with clients nobody here wrote."""
