"""The demo: a fleet that computes something real while cars leave, shown live and compared with a direct run."""
