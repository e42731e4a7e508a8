"""Camera paths made by hand: planned, saved, read again."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxrf.cameras.poses import look_at
from jaxrf.cameras.transforms import SimilarityTransform, rotate_onto
from jaxrf.viewer.poses import View
from jaxrf.viewer.tour import MOST_STOPS, Tour, plan_camera_path, read_tour, write_tour


def stops(count: int = 3) -> tuple[View, ...]:
    angles = np.linspace(0.0, 2.0, count)
    places = [4.0 * np.array([np.cos(a), np.sin(a), 0.5]) for a in angles]
    return tuple(
        View(look_at(place, np.zeros(3)), 0.6 + 0.1 * index, 1.5)
        for index, place in enumerate(places)
    )


def test_a_tour_passes_its_stops_with_their_angles() -> None:
    tour = Tour(stops(3), seconds=1.0, fps=21.0)
    cameras = plan_camera_path(tour, 60, 40)
    assert len(cameras) == tour.frames == 21 and (cameras.width, cameras.height) == (60, 40)
    for index, stop in zip((0, 10, 20), tour.stops, strict=True):
        np.testing.assert_allclose(cameras.T_world_camera[index], stop.pose, atol=1e-6)
        angle = 2.0 * np.arctan(20.0 / cameras.focal[index, 1])
        assert angle == pytest.approx(stop.fov, rel=1e-5)


def test_a_tour_that_loops_ends_one_step_short_of_its_start() -> None:
    tour = Tour(stops(3), seconds=1.0, fps=30.0, loops=True)
    cameras = plan_camera_path(tour, 60, 40)
    places = np.asarray(cameras.T_world_camera)[:, :3, 3]
    for index in (0, 1, 2):
        np.testing.assert_allclose(places[10 * index], tour.stops[index].pose[:3, 3], atol=1e-5)
    last = np.linalg.norm(places[0] - places[-1])
    assert 0.0 < last < 3.0 * np.linalg.norm(places[-1] - places[-2])
    assert cameras.focal[29, 1] > cameras.focal[20, 1]  # on the way back to the first angle


def test_a_saved_tour_is_in_the_files_coordinates_and_comes_back(tmp_path: Path) -> None:
    turn = rotate_onto(np.array([0.1, 0.2, 1.0]), np.array([0.0, 1.0, 0.3]))
    frame = SimilarityTransform(0.25, turn, np.array([0.3, -0.2, 0.1]))
    tour = Tour(stops(2), seconds=0.5, fps=20.0)
    cameras = plan_camera_path(tour, 64, 48)
    path = tmp_path / "camera-path.json"
    path.write_text(write_tour(cameras, tour.fps, frame))
    found = read_tour(path, frame)
    assert (found.fps, found.seconds, len(found.stops)) == (20.0, 0.5, 10)
    for stop, pose in zip(found.stops, cameras.T_world_camera, strict=True):
        np.testing.assert_allclose(stop.pose, pose, atol=1e-5)
    assert found.stops[0].fov == pytest.approx(0.6, rel=1e-5)
    # In other coordinates it is elsewhere.
    other = read_tour(path, dataclasses.replace(frame, shift=np.zeros(3)))
    assert np.abs(other.stops[0].pose[:3, 3] - found.stops[0].pose[:3, 3]).max() > 0.05


def test_of_a_long_path_some_stops_are_kept_from_first_to_last(tmp_path: Path) -> None:
    cameras = plan_camera_path(Tour(stops(3), seconds=10.0, fps=24.0), 64, 48)
    frame = SimilarityTransform(1.0, np.eye(3), np.zeros(3))
    path = tmp_path / "long.json"
    path.write_text(write_tour(cameras, 24.0, frame))
    found = read_tour(path, frame)
    assert len(found.stops) == MOST_STOPS
    np.testing.assert_allclose(found.stops[0].pose, cameras.T_world_camera[0], atol=1e-5)
    np.testing.assert_allclose(found.stops[-1].pose, cameras.T_world_camera[-1], atol=1e-5)
