"""A hook of mkdocs.yml: pages load nothing from another server."""
SHIM = 'https://unpkg.com/iframe-worker/shim'  # what search needs on pages that are opened from disk


def on_post_page(output: str, *, page, config, **kwargs) -> str:
    """Let a page take from this site what mkdocs-material's offline plugin asks another server for."""
    return output.replace(SHIM, '../' * page.url.count('/') + 'javascripts/iframe-worker.js')


def on_post_template(output_content: str, *, template_name: str, config, **kwargs) -> str:
    """The same for 404.html."""
    return output_content.replace(SHIM, 'javascripts/iframe-worker.js')
