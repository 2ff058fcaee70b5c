"""A local page that shows how a model thinks: ``hrm play``.

``page/`` has the page, without a build step. :mod:`hrm.play.server` serves it and runs the models;
:mod:`hrm.export.web` writes it for a static host, where the models run in the browser.
"""
