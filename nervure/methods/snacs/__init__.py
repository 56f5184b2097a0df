"""SNACS: connectivity between filters decides, within limits that the network itself tells."""
