"""Control operations on the members of the pool: taking back, spares, removing, the rebuild's speed, destroying."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbdplugin import arguments

if TYPE_CHECKING:
    from nbdplugin.target import Target
    from replicator.control import Handler


def handlers(target: Target) -> dict[str, Handler]:
    """The operations, by name. Those that change something answer with the pool's status."""
    pools = target.pools

    def readd(args: dict[str, Any]) -> dict[str, Any]:
        copies = pools.readd(arguments.text(args, "member"))
        target.maintenance.rebuild_soon()
        return {**pools.status(), "to_copy_bytes": copies}

    def remove(args: dict[str, Any]) -> dict[str, Any]:
        pools.remove_member(arguments.text(args, "member"))
        return pools.status()

    def clear_errors(args: dict[str, Any]) -> dict[str, Any]:
        member = args.get("member") and arguments.text(args, "member")
        return {"members": pools.clear_errors(member or "")}

    def spare_add(args: dict[str, Any]) -> dict[str, Any]:
        raid_group = args.get("raid_group") and arguments.text(args, "raid_group")
        pools.add_spare(arguments.member(args, "member"), raid_group or "", arguments.flag(args, "force"))
        target.maintenance.rebuild_soon()
        return pools.status()

    def spare_list(args: dict[str, Any]) -> list[dict[str, Any]]:
        spares: list[dict[str, Any]] = pools.status()["spares"]
        return spares

    def rebuild_limit(args: dict[str, Any]) -> dict[str, Any]:
        pools.limit_rebuild(arguments.integer(args, "bytes_s", high=1 << 50))
        return pools.status()

    def destroy(args: dict[str, Any]) -> dict[str, Any]:
        return {"not_erased": pools.destroy(arguments.flag(args, "force"))}

    return {
        "pool.readd": readd,
        "pool.remove": remove,
        "pool.clear_errors": clear_errors,
        "pool.spare_add": spare_add,
        "pool.spare_list": spare_list,
        "pool.rebuild_limit": rebuild_limit,
        "pool.destroy": destroy,
    }
