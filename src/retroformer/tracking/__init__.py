"""The record of closed rounds, and MLflow as a view of it; the only place that imports mlflow."""
