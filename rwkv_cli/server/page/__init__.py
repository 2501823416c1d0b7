"""The files of the page: plain HTML, CSS and JavaScript modules, without a build step.

`main.js` is what happens, `tree.js` the conversation as a tree, `render.js` text as HTML, `api.js` the requests. In
`vendor/` are marked 18.2.1, DOMPurify 3.4.18 and highlight.js 11.12.0, as published on npm, with their licences.
"""
