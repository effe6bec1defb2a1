"""What every stage uses: records, the plan, errors, copies, masks, tables."""
