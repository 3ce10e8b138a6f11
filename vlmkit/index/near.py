"""Places: records that say where they were taken, by how far that is from somewhere."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.io.records import Record

RADIUS = 6371.0088  # kilometres, the mean one of the earth
DEGREE = math.radians(RADIUS)  # kilometres

# Whether a stored record may lie within two latitudes, by the first `"lat":` in it, or has another such field: SQLite
# decides that for a million records in a third of the time that parsing them takes.
FIELD = "x'" + b'"lat":'.hex() + "'"
BEHIND = f"substr(record, instr(record, {FIELD}) + 6)"
IN_BAND = f"(CAST(substr({BEHIND}, 1, 24) AS REAL) BETWEEN ? AND ? OR instr({BEHIND}, {FIELD}))"


class Near(NamedTuple):
    """A condition: at most `km` from `lat`, `lon` (degrees), over the earth as a sphere."""

    lat: float
    lon: float
    km: float

    def __str__(self) -> str:
        return f"--near {self.lat:g},{self.lon:g},{self.km:g}"

    def distance(self, record: Record) -> float | None:
        """Kilometres to where a record was taken, by the haversine formula; None where it does not say that."""
        lat, lon = _degrees(record.get("lat"), 90), _degrees(record.get("lon"), 360)
        if lat is None or lon is None:
            return None
        south, north = math.radians(self.lat), math.radians(lat)
        height, width = (north - south) / 2, math.radians(lon - self.lon) / 2
        half_chord = math.sin(height) ** 2 + math.cos(south) * math.cos(north) * math.sin(width) ** 2
        return 2 * RADIUS * math.asin(math.sqrt(min(half_chord, 1.0)))

    @property
    def band(self) -> tuple[float, float]:
        """The latitudes beyond which nothing is near: the parameters of IN_BAND."""
        height = self.km / DEGREE + 1e-6
        return self.lat - height, self.lat + height

    def meets(self, record: Record) -> bool:
        distance = self.distance(record)
        return distance is not None and distance <= self.km


def parse_near(text: str) -> Near:
    """The place and the distance that `LAT,LON,KM` spells. Raises VlmkitError."""
    try:
        lat, lon, km = map(float, text.split(","))
    except ValueError:
        lat = lon = km = math.nan
    if not (abs(lat) <= 90 and abs(lon) <= 180 and 0 < km < math.inf):
        what = "a latitude from -90 to 90, a longitude from -180 to 180, and kilometres above 0"
        raise VlmkitError(f"--near {text}: not a place and a distance", f"write {what}: 48.2,16.37,5")
    return Near(lat, lon, km)


@dataclass
class Survey:
    """Of the records of an index: how many say where they were taken, how many do not, and how far the nearest is."""

    near: Near
    placed: int = 0
    others: int = 0
    least: float = math.inf

    def note(self, record: Record) -> None:
        distance = self.near.distance(record)
        self.placed += distance is not None
        self.others += distance is None
        self.least = min(self.least, math.inf if distance is None else distance)

    def line(self) -> str:
        """Why nothing is near, and what to do; empty where something is."""
        if not self.placed:
            return f"{self.near}: no record in the index says where it was taken (lat, lon): leave --near out"
        if self.least <= self.near.km:
            return ""
        of = f"{self.placed:,} records that say where they were taken ({self.others:,} do not)"
        return f"{self.near}: the nearest of {of} is {self.least:,.1f} km away: give more kilometres"


def _degrees(value: Any, most: int) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) <= most else None
