"""Dashboards for Grafana, generated from the coordinator's metric catalogue. Not part of the product's packages."""
