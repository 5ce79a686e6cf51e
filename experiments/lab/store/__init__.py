"""Everything on disk: records, checksums, leases, checkpoints, histories, provenance."""
