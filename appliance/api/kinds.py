"""What a text is embedded for, by the names that APIs and models have for it."""

from collections.abc import Mapping

from appliance.embedding.spec import Kind
from appliance.errors import InvalidInput

KINDS: Mapping[str, Kind] = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "search_document": "document",
    "passage": "document",
    "classification": "classification",
    "clustering": "clustering",
}


def kind_of(name: str | None, *, param: str, default: Kind = "document") -> Kind:
    """The kind that a caller names, in any case.

    Args:
        name: None or empty for the default.
        param: the field it came in.
        default: what it is for when nobody says.

    Raises:
        InvalidInput: no kind has this name; the message lists those that have.
    """
    if not name:
        return default
    kind = KINDS.get(name.lower())
    if kind is None:
        raise InvalidInput(
            f"Invalid value for '{param}'. Supported values: {[str(each) for each in KINDS]}.", param=param
        )
    return kind
