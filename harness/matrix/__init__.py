"""WHAT to run: configuration, versions, cells, plan and expectations. Pure: no process, no network, no clock."""
