"""Settings, database and errors of the service; `copier update` keeps them up to date."""
