"""Sampling along rays: stratified and importance samples, occupancy grids, ray marching."""
