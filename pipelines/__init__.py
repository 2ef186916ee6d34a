"""Pipeline files, packaged as `loffta_pipelines` so that an installed wheel finds `demo.yaml`."""
