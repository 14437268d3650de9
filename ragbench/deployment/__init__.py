"""From a tuned system to one that answers: bundles, their store and its gate, integrations, the service."""
