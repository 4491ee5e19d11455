"""What the template owns: settings, database, migrations. `copier update` keeps improving it."""
