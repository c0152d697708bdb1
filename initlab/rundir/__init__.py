"""A run's folder: one writer at a time, tables that grow cell by cell with a checksum for each, and run.json that says
what they are."""

from initlab.rundir.commits import COMMITS
from initlab.rundir.files import csv_bytes, write_whole
from initlab.rundir.folder import RunDir, check, note
from initlab.rundir.manifest import MANIFEST
from initlab.rundir.reading import Run, load

__all__ = ["COMMITS", "MANIFEST", "Run", "RunDir", "check", "csv_bytes", "load", "note", "write_whole"]
