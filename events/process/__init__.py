"""What every process needs: settings, health and logging, problem documents, the artifact store."""
